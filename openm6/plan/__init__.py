"""The planner: memory, time and cost of a run before it runs (`openm6 plan`).

Read the modules in this order: `hardware` (a description of a machine), `job` (a description of a run), `tally` and
`workload` (the cost of a piece of the model, traced from its code), `step` and `memory` (a step as the engine runs
it), `lanes` (its timeline), `plan` (everything together), `advice`. Then `probe` (measures this machine),
`simulate` (other sizes, stragglers, failures), `text` and `page` (the output).
"""
