"""The planner: memory, time and cost of a run before it runs (`openm6 plan`).

In the order in which to read: `hardware` (what a machine is), `job` (what is planned), `tally` and `workload` (what
a piece of the model costs, traced from its code), `step` and `memory` (a step as the engine runs it), `lanes` (when
what happens), `plan` (all of it), `advice`; then `probe` (measures this machine), `simulate` (other sizes,
stragglers, failures), `text` and `page` (what people see).
"""
