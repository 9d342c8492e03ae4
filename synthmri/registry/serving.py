"""A trained model as MLflow serves it: requests in, pictures out, pixel for pixel those of `stages.sample`.

MLflow runs this file by itself ("models from code"), beside the package as it was when the model was registered.
"""

import io
import json
import threading
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from pydantic import BaseModel, ConfigDict, Field

# The distributions that drawing needs; a model is registered with the versions it was made with.
REQUIREMENTS = (
    "diffusers", "lpips", "mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors", "scikit-learn", "torch",
    "transformers",
)  # fmt: skip
MOST = 64  # images a call; for more there is `synthmri generate`
STEERING = ("prompt", "steps", "guidance_scale")  # what models with prompts alone understand


class Request(BaseModel):
    """One request. Image i is drawn from seed + i; what is left out is as the registered samples were drawn."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int = Field(default=0, ge=0, lt=2**62)
    n: int = Field(default=1, ge=1, le=MOST)
    prompt: str | None = Field(default=None, max_length=300)
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=1, le=50)
    format: str = Field(default="png", pattern="^(png|array)$")
    masks: bool = False


class Model(PythonModel):
    """Any of the project's models, drawing on request; one request at a time."""

    def load_context(self, context) -> None:
        """Open the model once, as MLflow calls for it before all requests."""
        import torch

        from synthmri import generators
        from synthmri.training import precision, sampling

        config = context.model_config
        self.code, self.threads = config["code"], config["threads"]
        self.p = sampling.Sample.model_validate(config["sample"], strict=False)
        self.prompts = json.loads(Path(context.artifacts["prompts"]).read_text(encoding="utf-8"))
        # Trained on a GPU, it may be served without one; the pixels then differ in rounding.
        device = config["device"] if torch.cuda.is_available() else "cpu"
        wanted = config["precision"] if device == config["device"] else "auto"
        self.precision, _ = precision.choose(wanted, device)
        self.trained = generators.find(self.code).load(Path(context.artifacts["model"]), device=device)
        self.lock = threading.Lock()

    def predict(self, context, model_input: list[Request], params=None) -> list:
        """A dict an image: seed, prompt, and png (bytes; base64 where served) or array (uint8 (S, S)).

        With masks, also mask: that of its lesions in the same format, 255 inside.
        """
        if not 1 <= sum(request.n for request in model_input) <= MOST:
            raise _refused(f"a call draws 1 to {MOST} images; these requests ask for {sum(r.n for r in model_input)}")
        with self.lock:
            return [image for request in model_input for image in self._draw(request)]

    def _draw(self, request: Request) -> list[dict[str, Any]]:
        import torch

        from synthmri.errors import UserError
        from synthmri.scans import prompts

        seeds = list(range(request.seed, request.seed + request.n))
        asked = {name: getattr(request, name) for name in STEERING if getattr(request, name) is not None}
        # As in stages.sample: threads, precision and the batch's size change the rounding of sums, and so the pixels.
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            if asked and not self.trained.prompted:
                raise _refused(f"{', '.join(asked)}: this model ({self.code}) draws from the seed alone; leave it out")
            prompt = asked.pop("prompt", None)
            texts = [prompt or ""] * request.n
            if prompt is None and self.trained.prompted:
                texts = prompts.drawn(self.prompts, seeds)
            p = self.p.model_copy(update=asked)
            paired = getattr(self.trained, "sample_with_masks", None) if request.masks else None
            planes = (paired or self.trained.sample)(seeds, p, texts=texts, precision=self.precision)
            if request.masks and (not paired or planes.shape[1] == 1):
                raise _refused(f"masks: this model ({self.code}) draws none; leave it out")
            planes = planes if paired else planes[:, None]
        except UserError as error:
            raise _refused(str(error)) from None
        finally:
            torch.set_num_threads(before)
        out = []
        for seed, text, pair in zip(seeds, texts, planes, strict=True):
            shown = [_png(plane) if request.format == "png" else plane for plane in pair]
            out.append({"seed": seed, "prompt": text, **dict(zip((request.format, "mask"), shown, strict=False))})
        return out


def _png(plane) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG")
    return buffer.getvalue()


def _refused(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)  # HTTP status 400


set_model(Model())
