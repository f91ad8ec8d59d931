"""Readers of data sets as their authors release them, a file for each (data page); `sdcl.data.sets` lists them."""
