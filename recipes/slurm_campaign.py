"""Run a suite on a Slurm cluster, in jobs of Dask workers that are started and ended from here.

Needs `pip install dask-jobqueue` beside deepgalaxy, and a folder that all machines share. Start it on a login
node (in tmux or screen) or in a small job of its own; started again, it runs what is missing:

    python recipes/slurm_campaign.py recipes/wide_suite.yaml -o runs/ --jobs 10 --cores 16 --queue normal
"""

import argparse
import sys

import dask
from dask_jobqueue import SLURMCluster

from deepgalaxy.cli import main
from deepgalaxy.memory import WORKER_ENVIRONMENT

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("suite", help="YAML of a suite")
parser.add_argument("-o", "--output", required=True, help="folder of encounter files")
parser.add_argument("--jobs", type=int, default=4)
parser.add_argument("--cores", type=int, default=16, help="of each job; every core runs an encounter of its own")
parser.add_argument("--memory", default="32GB", help="of each job")
parser.add_argument("--hours", type=float, default=4, help="time limit of each job; another one follows")
parser.add_argument("--queue", help="Slurm's partition")
parser.add_argument("--account")
parser.add_argument("--interface", help="of the network between the machines, such as ib0")
options = parser.parse_args()

minutes = int(60 * options.hours)
dask.config.set({"distributed.scheduler.allowed-failures": 2})  # the third worker that dies is the last
with SLURMCluster(
    queue=options.queue, account=options.account, interface=options.interface, memory=options.memory,
    cores=options.cores, processes=options.cores, walltime=f"{minutes // 60:02d}:{minutes % 60:02d}:00",
    job_script_prologue=[*(f"export {name}_NUM_THREADS=1" for name in ("NUMBA", "OMP", "OPENBLAS")),
                         *(f"export {name}={value}" for name, value in WORKER_ENVIRONMENT.items())],
    # Workers leave before Slurm ends their job: what they were at is then run elsewhere, and counts as no failure.
    worker_extra_args=["--lifetime", f"{minutes - 5}m", "--lifetime-stagger", "4m"],
) as cluster:
    cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)  # unlike scale(), it replaces jobs that ended
    # A queue may be long: a day without any worker is no reason to give up.
    sys.argv = ["deepgalaxy", "simulate", options.suite, "-o", options.output,
                "--scheduler", cluster.scheduler_address, "--patience", "86400"]
    main()
