"""transformers' Trainer, whose checkpoints are complete: any loader of the hub's layout reads them.

Where in the flow: around a `NomicBert` or a model with a head, which the plain Trainer trains as
well. Of a model that is not transformers' own, the plain Trainer saves the state dict only: our
names of the parameters, and no config.json.
Source: Trainer of transformers 5.
"""

from collections.abc import Mapping

import transformers
from torch import Tensor

from nomicbert.modeling.heads.head import Head
from nomicbert.modeling.model import NomicBert


class Trainer(transformers.Trainer):  # type: ignore[misc]  # transformers has no types here
    """Trainer, with the same arguments, that saves by the model's `save_pretrained`.

    Checkpoints, `save_model` and the best model can be loaded by `from_pretrained` of this package
    and of transformers, and training resumes from them. Models of other classes, those of peft
    among them, are saved as by the plain Trainer.
    """

    def _save(
        self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Save the model, and what the plain Trainer saves with it: tokenizer and arguments."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, NomicBert | Head):
            super()._save(output_dir, state_dict)
            return
        # no weights: those that it would write have other names
        super()._save(output_dir, {})
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            model.save_pretrained(folder, state_dict=state_dict)
