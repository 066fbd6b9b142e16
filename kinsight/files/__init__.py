"""Files: data sets read from a folder of images, a CSV table, or an npz archive, without unpickling.

What cannot be read as it stands is refused, with the place: nothing is skipped, wrapped around, rounded to infinity,
or taken for a number that it is not.
"""

from kinsight.files.archives import read_npz
from kinsight.files.images import read_image_folder
from kinsight.files.tables import read_csv

__all__ = ["read_csv", "read_image_folder", "read_npz"]
