"""Start a Ray cluster of three nodes on this machine: a head without CPUs and two workers. Run in the bulk environment.

Prints the address. The line ``kill`` on stdin kills one worker, as if its machine were lost; the end of stdin stops the
cluster.
"""

import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
try:
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            print("killed", flush=True)
finally:
    cluster.shutdown()
