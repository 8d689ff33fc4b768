"""What a person starts: the pipeline as a Prefect flow, sweeps of it, the local servers, and the demo's page.

The modules here are the commands, and the rooms below hold their parts. The rooms import one another in this order
only: `entry`, `building`, `sweeps`, `places`. The one exception is `flows.sweeps.point_program`, which starts
`flows.full_pipeline`. Flows import `tasks`, and nothing imports flows.
"""
