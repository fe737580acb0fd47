"""A model one decoder layer at a time: read by name, run as a model of one layer, then dropped.

What is in memory is then one layer and the hidden states of the text, whatever the depth. The one
layer is transformers' own, in a model of the same class, whose ``forward`` makes mask and rotary
positions; so a hidden state has the bits that it has in the whole model.
"""
