"""Pure loss functions: tensors in, a tensor out. They know no model, no file and no device.

No gradient flows into a teacher's side.
"""
