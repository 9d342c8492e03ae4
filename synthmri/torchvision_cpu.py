"""Make `import torchvision` work beside a CPU-only torch.

torchvision is published for Linux with CUDA operators only. Beside a CPU build of torch its operator library cannot be
loaded, and the import dies with "operator torchvision::nms does not exist"; with it die `lpips`, the pipelines of
diffusers and `torchmetrics.image`, none of which uses these operators. Declaring the two operators' schemas just before
torchvision is imported lets it through. Nothing is imported and nothing is changed until then, and nothing at all where
torch has CUDA.

`make` also has every interpreter of `.venv` import a copy of this file at its start, so that `import lpips` works there
too. A copy, since a package that is imported at the start would hide the one in an experiment's own folder.
"""

import importlib.abc
import sys

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries = []  # a torch.library.Library withdraws its operators when it is collected


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and not _libraries:
            import torch

            if torch.version.cuda is None and torch.version.hip is None:
                library = torch.library.Library("torchvision", "DEF")
                for name, schema in _SCHEMAS.items():
                    library.define(name + schema)
                _libraries.append(library)
        return None  # the import itself is left to the ordinary finders


if not any(type(finder).__name__ == "_DeclareOperators" for finder in sys.meta_path):
    sys.meta_path.insert(0, _DeclareOperators())
