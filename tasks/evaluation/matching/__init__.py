"""Learning which caption belongs to which picture from one's own captioned pictures: for scorer and judge `matching`.

It may import `tasks/data` and the judges' network.
"""
