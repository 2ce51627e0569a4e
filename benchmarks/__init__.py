"""What `dilqr bench` measures: our backends beside their peers. Not part of the wheel; see run.py."""
