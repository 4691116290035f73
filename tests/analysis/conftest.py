"""A made-up comparison for the tests of analysis."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # synthetic.py lies beside the tests that use it
