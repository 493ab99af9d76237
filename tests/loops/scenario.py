"""Run as a program in a process of its own: migrate a fresh database and seed one host, pool and deployment in it.

Prints JSON: ``host_id``, ``secret`` (hex), ``deployment_id``.
"""

import json

import django

if __name__ == "__main__":
    django.setup()
    from django.core.management import call_command

    from capacity.policy.cost import CostProfile
    from capacity.services import hardware_type_get_or_create, host_enrol, model_create, pool_create
    from serving.services import deployment_create

    call_command("migrate", interactive=False, verbosity=0)
    hardware = hardware_type_get_or_create(name="CPU", actor="a test", is_cpu=True)
    host, secret = host_enrol(name="host-1", hardware_type=hardware, actor="a test")
    profile = CostProfile(version=1, base=0.0, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)
    model = model_create(name="a model", artifact_kind="none", actor="a test")
    pool = pool_create(model=model, hardware_type=hardware, profile=profile, actor="a test")
    deployment = deployment_create(
        pool=pool, name="demo", runtime="simulated", actor="a test", min_replicas=2, max_replicas=4
    )
    print(json.dumps({"host_id": str(host.pk), "secret": secret.hex(), "deployment_id": str(deployment.pk)}))
