"""MLflow's own pages in a real browser: the models, the champion, the metrics and a picture are there to be seen."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium (Debian's package chromium)"),
    pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True),
]
