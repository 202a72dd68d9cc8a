"""The audit: every attack against every defence, with controls, as one claim.

`plan`: settings, presets, the grid. `audit_seed`: what one seed stands on. `cells`: the tasks. `runner`: processes,
resuming. `claim`: what is kept. The report is made from the claim alone (`sdb.report`).
"""
