"""What makes the networks fast, and nothing that a reader of the networks has to know.

| module     | what it has                                                                |
| ---------- | -------------------------------------------------------------------------- |
| `conv`     | convolution closed under differentiation                                   |
| `conv_gpu` | its forms for accelerators                                                 |
| `winograd` | convolution by 3x3 windows with less than half the multiplications         |
| `pool`     | max-pooling closed under differentiation                                   |
| `moments`  | means and variances, read once or twice                                    |
| `pieces`   | batches of images computed a piece at a time                               |
| `loop`     | loops over pieces that do not copy                                         |
| `barrier`  | identities that the compiler does not look through, and work done again    |
"""
