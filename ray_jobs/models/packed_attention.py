"""Attention inside each row of a packed sequence, on a CPU: the same numbers as one dense mask, in less time.

A packed sequence of T tokens under a mask costs T², whatever is masked; row by row it costs the sum of the rows'
squares. On a GPU the masked kernel stays. Rows are found by their positions, which restart at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "kitae_by_row"


def use(model: PreTrainedModel) -> bool:
    """Make a model attend row by row where it would use PyTorch's masked attention. Returns False for another model.

    Sequences that are not packed are computed as before.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return False
    AttentionInterface.register(NAME, _attend)
    # The mask is still made, for the calls that need it.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
    return True


def row_lengths(position_ids_BT: torch.Tensor | None) -> list[int]:
    """Lengths of the rows in a packed sequence. Empty for anything else: several sequences, a sequence that does not
    begin at a row's first token, or positions that jump."""
    import torch

    if position_ids_BT is None or position_ids_BT.ndim != 2 or position_ids_BT.shape[0] != 1:
        return []
    positions_T = position_ids_BT[0]
    starts = (positions_T == 0).nonzero().flatten()
    if starts.numel() == 0 or int(starts[0]) != 0:
        return []
    ends = torch.cat([starts[1:], starts.new_tensor([len(positions_T)])])
    lengths = ends - starts
    counted = torch.arange(len(positions_T)) - starts.repeat_interleave(lengths)
    return lengths.tolist() if torch.equal(counted, positions_T) else []


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface: query is (B, heads, T, width), the result (B, T, heads, width)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    # The masked kernel handles every other option of a model: a window, sinks, a cap.
    extra = [name for name, value in options.items() if value not in (None, False) and name not in _HARMLESS]
    plain = query.device.type == "cpu" and dropout == 0.0 and query.shape[2] == key.shape[2] and not extra
    lengths = row_lengths(position_ids) if plain else []
    if len(lengths) < 2:
        answer: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return answer
    groups = query.shape[1] // key.shape[1]
    whole = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    parts = [torch.split_with_sizes(tensor, lengths, 2) for tensor in whole]
    rows = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling) for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(rows, dim=2).transpose(1, 2), None


_HARMLESS = frozenset({"use_cache", "logits_to_keep", "num_items_in_batch"})
"""Options that some models pass through and the attention ignores."""
