"""Callbacks for trainers: ``rankscope.integrations.lightning`` and ``rankscope.integrations.transformers``.

Each imports its framework, and each has an extra: ``pip install 'rankscope[lightning]'``.
"""
