"""What a model will take of memory and time, from its configuration and the code that would run it.

The real modules and the real code run once on tensors that have a shape and no data, and every allocation and product
is counted: nothing here knows what a layer keeps, and so nothing here can be out of date.
"""
