"""Faster ways to compute what a Hugging Face model computes, put into it from outside. One lever a file.

| file | instead of | recipe key | result |
| --- | --- | --- | --- |
| `attention` | the library's `eager` and `sdpa` | `train.attention` | equal to rounding |
| `dropout` | `torch.nn.Dropout` | `train.fast_dropout` | the same distribution, other draws |
| `used_rows` | training the whole word embedding | `train.used_rows` | the same (no weight decay) |
| `first_token` | the whole last layer | `train.first_token` | equal to rounding; other dropout draws |
| `packing` | computing padding | `train.packing` | equal to rounding; other dropout draws |
| `layer` | some forty autograd functions a layer | `train.fused_layers` | equal to rounding; other dropout draws |
| `late_head` | a masked-LM's logits of every token and piece | always on | equal to rounding |

`capture` hands out the queries, keys and values that a method reads, whichever of these compute them.
"""

ATTENTION = "kdbert"  # what transformers knows our attention function as
