"""
First pruned run
================

A stub.
"""

import matplotlib.pyplot as plt

print("Hello")
_ = plt.plot([1, 2])
