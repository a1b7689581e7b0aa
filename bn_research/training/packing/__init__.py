"""Many runs that differ in numbers, trained together by one set of programs.

Each program of a run is traced for each setting of the numbers. The traces of
two settings that differ in numbers only have the same equations, with other
literals. These literals become arguments of one program (`lifting`), which
advances all runs of a pack at once (`program`, `pack`). Each run keeps a loop
of its own, in a thread, and the threads meet at the calls of the programs
(`meeting`). The loop and the files of a run thus know nothing of the pack.
"""

from bn_research.training.packing.members import Member
from bn_research.training.packing.output import by_thread
from bn_research.training.packing.training import train

__all__ = ['Member', 'by_thread', 'train']
