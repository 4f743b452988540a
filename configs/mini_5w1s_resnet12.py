"""mini-ImageNet, 5-way 1-shot, ResNet-12 from supervised pretraining, UNICORN-MAML: 65.2 % (arXiv:2106.16245).

Today's figures for MAML start from an encoder that was trained on all 64 base classes. Here: DropBlock of 0.1 as in
MetaOptNet (arXiv:1904.03758), SGD with weight decay, fifteen inner steps; the length and the rates of both trainings
are our choice. 15 queries per class at test. Not run by us.

    python launch.py --config configs/mini_5w1s_resnet12.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.support_augment = c.data.query_augment = "resize"
    c.model.encoder = "resnet12"
    c.model.options = "drop=0.1"
    c.model.head = "shared"
    c.inner.steps = 15
    c.inner.encoder_rate = 0.05
    c.inner.head_rate = 0.05
    c.outer.optimizer = "sgd"
    c.outer.weight_decay = 5e-4
    c.outer.rate = 1e-3
    c.outer.schedule = "cosine"
    c.train.pretrain = 30_000
    c.train.pretrain_batch = 128
    c.train.pretrain_rate = 0.05
    c.train.steps = 20_000
    c.train.tasks = 1
    c.eval.query = 15
    c.eval.steps = 15
    return c
