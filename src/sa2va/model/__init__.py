"""What is computed: tensors in, tensors out, no files and no pictures."""
