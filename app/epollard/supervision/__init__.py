"""What the supervisor knows of its workers, and the policies by which it acts."""
