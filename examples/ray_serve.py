"""Serve a box on Ray Serve: the same application as `sdb serve`, in several replicas or on several machines.

    pip install "safe-distillation-box[serve,redis]" "ray[serve]"
    serve run examples.ray_serve:app box=/abs/model.box replicas=2
    serve run examples.ray_serve:app box=/abs/model.box replicas=2 watch=redis://HOST/0 tokens=/abs/tokens.db

Then ask http://127.0.0.1:8000/v2/models/box as always. Replicas that share no memory share their counts through Redis.
"""

from ray import serve


def app(arguments: dict[str, str]) -> serve.Application:
    """The Ray Serve application.

    Args:
        arguments: box (a path that every machine has); replicas; and as `sdb serve` has them: answers, watch,
            tokens, partner_keys (files with commas between them).
    """

    def build():
        from sdb.service import create_app
        from sdb.service.watch import Watch

        watch = None
        if {"watch", "tokens"} & arguments.keys():
            watch = Watch.open(arguments.get("watch"), tokens=arguments.get("tokens"))
        keys = arguments.get("partner_keys", "")
        return create_app(
            arguments["box"],
            watch=watch,
            partner_keys=keys.split(",") if keys else (),
            answers=arguments.get("answers", "logits"),
        )

    # Many at once: the application makes batches of what waits, and refuses what would wait too long.
    options = serve.deployment(num_replicas=int(arguments.get("replicas", 1)), max_ongoing_requests=256)
    return options(serve.ingress(build)()).bind()
