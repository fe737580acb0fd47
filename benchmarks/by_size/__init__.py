"""Random models of any size, taken through the stages in processes whose memory is measured."""
