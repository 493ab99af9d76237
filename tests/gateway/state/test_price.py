"""What a request costs whose gateway was lost, and perhaps its price with it."""

import time

import pytest

from serving.gateway import logs
from serving.gateway.config import load_config
from serving.gateway.records import AdmitLine, PoolRecord, ProfileRecord, Usage
from serving.gateway.services import Services


@pytest.fixture
async def services(state_url, tmp_path):
    environment = {"REDIS_URL": state_url, "PENSTOCK_KEY_PEPPERS": '{"1": "pepper"}'}
    config = load_config(data=tmp_path, host="127.0.0.1", port=1, name="gateway", environment=environment)
    made = Services(config, *logs.configure("gateway"))
    yield made
    await made.state.close()


ESTIMATED = Usage(input_tokens=100, output_tokens=300)


def admitted(estimated=ESTIMATED):
    return AdmitLine(
        id="a",
        at=time.time(),
        tenant="t",
        key="k",
        pool="p",
        deployment="d",
        revision="r",
        model="m",
        dialect="chat",
        profile_version=3,
        estimated_mu=8.0,
        estimated=estimated,
    )


@pytest.mark.parametrize(
    ("used", "mu"),
    [
        (Usage(), 0.0),
        (Usage(output_tokens=1), 0.02),
        (Usage(input_tokens=100, output_tokens=100), 4.0),
        (Usage(input_tokens=100, output_tokens=300), 8.0),
        (Usage(input_tokens=100, output_tokens=9000), 8.0),
    ],
)
async def test_where_the_pool_is_gone_it_costs_its_share_of_the_estimate(services, used, mu):
    assert services.price(admitted(), used) == pytest.approx(mu)


async def test_an_estimate_without_tokens_is_all_there_is(services):
    estimated = Usage(units={"rows": 12.0})
    assert services.price(admitted(estimated), Usage()) == 0.0
    assert services.price(admitted(estimated), Usage(output_tokens=1)) == 8.0


async def test_while_the_pool_is_there_its_price_counts(services):
    profile = ProfileRecord(version=4, base=0.5, alpha=0.01, beta=0.1, gamma=0.0, epsilon=0.0, cached_factor=0.1)
    services.store.view.pools["p"] = PoolRecord(id="p", slug="p", profile=profile)
    assert services.price(admitted(), Usage(input_tokens=10, output_tokens=2)) == pytest.approx(0.5 + 0.1 + 0.2)
    assert services.price(admitted(), Usage()) == 0.0
