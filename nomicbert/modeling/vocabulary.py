"""Another size of the vocabulary: the rows of tables that are cut or grown.

    new rows ~ N(m, 1e-9 C),  m and C the mean and the covariance of the old rows
    new biases ~ N(m, (1e-9 s)^2),  m and s the mean and the deviation of the old biases
Source: Hewitt 2021, "Initializing new word embeddings for pretrained language models"; the factors
are those of resize_token_embeddings in transformers.
"""

import torch
from torch import Tensor, nn

from nomicbert.arguments import as_whole

# Factor of the covariance: new rows are the mean, with little noise.
NARROW = 1e-9


def new_size(old: int, asked: int | None, multiple: int | None) -> int:
    """Rows of the new table: as asked (None: as before), rounded up to a multiple.

    Raises: TypeError, ValueError: not whole numbers of at least 1.
    """
    for name, value in (("new_num_tokens", asked), ("pad_to_multiple_of", multiple)):
        if value is not None and as_whole(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    count = old if asked is None else int(asked)
    return count if multiple is None else -(-count // multiple) * multiple


def resize(
    table: nn.Embedding, asked: int | None, multiple: int | None, std: float, mean_resizing: bool
) -> bool:
    """Cut or grow a table in place; a padding row that was cut off is no longer one.

    Args:
        table: (rows, H).
        asked: as for `new_size`.
        multiple: as for `new_size`.
        std: as for `resized`.
        mean_resizing: as for `resized`.

    Returns: whether its size changed.
    Raises: TypeError: another kind of module. Also the errors of `new_size`.
    """
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"only an nn.Embedding can be resized, not a {type(table).__name__}")
    old = table.weight
    count = new_size(len(old), asked, multiple)
    if count == len(old):
        return False
    table.weight = resized(old, count, std, mean_resizing)
    table.num_embeddings = count
    if table.padding_idx is not None and table.padding_idx >= count:
        table.padding_idx = None
    return True


@torch.inference_mode(False)  # what is made under a caller's inference_mode could not be trained
@torch.no_grad()
def resized(old: Tensor, count: int, std: float, mean_resizing: bool) -> nn.Parameter:
    """Cut a table to `count` rows, or add random ones.

    Args:
        old: (rows, H), or (rows,) for a bias.
        count: rows of the result.
        std: of new rows around 0 if not `mean_resizing`.
        mean_resizing: draw new rows around the mean of the old ones, as described above.

    Returns: (count, H) or (count,); dtype, device and requires_grad of `old`.
    """
    kept, added = old[:count], count - len(old)
    if added > 0:
        shape = (added, *old.shape[1:])
        wide = old.detach().float()
        if not mean_resizing:
            new = torch.randn(shape, device=old.device) * std
        elif old.dim() == 1:
            new = wide.mean() + NARROW * wide.std(correction=0) * torch.randn(
                shape, device=old.device
            )
        else:
            new = around_mean(wide, added)
        kept = torch.cat([kept, new.to(old.dtype)])
    return nn.Parameter(kept.detach().clone(), requires_grad=old.requires_grad)


def around_mean(old: Tensor, added: int) -> Tensor:
    """Draw (added, H) from the normal distribution described above; old (rows, H) fp32."""
    mean = old.mean(0)
    centred = old - mean
    # the root of the covariance by eigenvectors: it may be singular, as with few rows
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(old))
    root = vectors * (NARROW * values.clamp(min=0)).sqrt()
    drawn: Tensor = mean + torch.randn(added, old.shape[1], device=old.device) @ root.T
    return drawn
