"""Reads a decision log by Polars, DuckDB, DataFusion and Minari and compares it with `blkpilot log show`."""

import json
import math
import pathlib
import sys

import datafusion
import duckdb
import minari
import numpy
import polars

out = pathlib.Path(sys.argv[1])
pattern = f"{out}/log/host=*/day=*/*.parquet"
rows = [json.loads(line) for line in open(out / "rows.jsonl")]
counted = [row["outcome"] for row in rows if row["outcome"] and row["outcome"]["counted"]]
wanted = {
    "rows": len(rows),
    "hosts": len({row["decision"]["host"] for row in rows}),
    "reward": sum(outcome["reward_own"] for outcome in counted),
    "propensity": sum(h["propensity"] for row in rows for h in row["decision"]["heads"]),
    "allowed": sum(m == "allowed" for row in rows for h in row["decision"]["heads"] for m in h["mask"]),
    "first": min(row["decision"]["at_us"] for row in rows),
}


def compare(reader, found):
    for name, value in wanted.items():
        if not math.isclose(found[name], value, rel_tol=1e-6, abs_tol=1e-9):
            sys.exit(f"{reader}: {name} is {found[name]}, blkpilot log show has {value}")
    print(f"{reader}: {found['rows']} rows, sums of rewards, propensities and masks agree")


def by_polars():
    table = polars.scan_parquet(pattern, hive_partitioning=True)
    return table.select(
        rows=polars.len(),
        hosts=polars.col("host").n_unique(),
        reward=polars.col("reward_own").filter(polars.col("counted")).cast(polars.Float64).sum(),
        propensity=polars.col("head_propensity").list.sum().sum(),
        allowed=polars.col("head_mask").list.eval(
            (polars.element().list.eval(polars.element() == "allowed").list.sum())
        ).list.sum().sum(),
        first=polars.col("at").min().dt.epoch("us"),
    ).collect().row(0, named=True)


SQL = """SELECT count(*) AS rows, count(DISTINCT {host}) AS hosts,
    sum(CAST(reward_own AS DOUBLE)) FILTER (WHERE counted) AS reward FROM {log}"""


def by_duckdb():
    log = f"read_parquet('{pattern}', hive_partitioning = true)"
    names = ("rows", "hosts", "reward")
    found = dict(zip(names, duckdb.sql(SQL.format(log=log, host="host")).fetchall()[0]))
    lists = duckdb.sql(f"""SELECT sum(list_sum(head_propensity)),
        sum(len(list_filter(flatten(head_mask), lambda m: m = 'allowed'))), min(epoch_us("at")) FROM {log}""")
    return found | dict(zip(("propensity", "allowed", "first"), lists.fetchall()[0]))


def by_datafusion():
    context = datafusion.SessionContext()
    partitions = [("host", "string"), ("day", "string")]
    context.register_parquet("log", f"{out}/log", table_partition_cols=partitions)
    found = context.sql(SQL.format(log="log", host="host")).to_pylist()[0]
    levels = context.sql("""SELECT sum(p) AS propensity FROM
        (SELECT unnest(head_propensity) AS p FROM log)""").to_pylist()[0]
    masks = context.sql("""SELECT count(*) AS allowed FROM
        (SELECT unnest(unnest(head_mask)) AS m FROM log) WHERE m = 'allowed'""").to_pylist()[0]
    first = context.sql("SELECT CAST(min(at) AS BIGINT) AS first FROM log").to_pylist()[0]
    return found | levels | masks | first


def by_minari():
    exported = json.load(open(out / "exported.json"))
    dataset = minari.MinariDataset(out / "dataset" / "data")
    assert dataset.total_episodes == exported["episodes"] and dataset.total_steps == exported["steps"]
    propensities = {row["decision"]["at_us"]: [] for row in rows}
    for row in rows:
        propensities[row["decision"]["at_us"]].append([h["propensity"] for h in row["decision"]["heads"]])
    steps = 0
    for episode in dataset.iterate_episodes():
        count = len(episode)
        assert episode.observations.shape == (count + 1, *dataset.observation_space.shape)
        assert episode.actions.shape == (count, len(dataset.action_space.nvec))
        assert all(dataset.action_space.contains(action) for action in episode.actions)
        assert numpy.isfinite(episode.rewards).all() and len(episode.rewards) == count
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()
        assert episode.truncations[-1] or episode.terminations[-1]
        for at, own in zip(episode.infos["at_us"][:-1], episode.infos["propensity"][:-1]):
            assert own.tolist() in propensities[int(at)], "a propensity that no row of this time has"
        steps += count
    assert steps == exported["steps"] and steps > 0
    print(f"Minari: {dataset.total_episodes} episodes, {steps} steps, propensities agree")


compare(f"Polars {polars.__version__}", by_polars())
compare(f"DuckDB {duckdb.__version__}", by_duckdb())
compare(f"DataFusion {datafusion.__version__}", by_datafusion())
by_minari()
