"""Make `import torchvision` work beside a CPU-only torch.

torchvision is published for Linux with CUDA operators only. Beside a CPU build of torch its extension cannot be loaded,
and the import dies with "operator torchvision::nms does not exist"; with it die `lpips`, the pipelines of diffusers and
`torchmetrics.image`, none of which uses these operators. Where torchvision has tried to load its extension and failed,
the two operators' schemas are declared before it goes on, and that lets it through. Nothing is imported before it is
asked for, and where the extension loads (a CPU build of conda, macOS or pytorch.org, or CUDA) nothing is changed.

`make` also has every interpreter of `.venv` import a copy of this file at its start, so that `import lpips` works there
too. A copy, since a package that is imported at the start would hide the one in an experiment's own folder.
"""

import importlib.abc
import importlib.machinery
import sys

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries = []  # a torch.library.Library withdraws its operators when it is collected


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    _libraries.append(library)


class _AfterExtension(importlib.abc.MetaPathFinder):
    """Watches for torchvision.extension, the module that loads the operators and swallows the failure to."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision.extension":
            return None  # the import is left to the ordinary finders
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_look(module) -> None:
                load(module)
                if not module._has_ops():
                    _declare()

            spec.loader.exec_module = load_and_look
        return spec


if not any(type(finder).__name__ == "_AfterExtension" for finder in sys.meta_path):
    sys.meta_path.insert(0, _AfterExtension())
