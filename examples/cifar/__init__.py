"""CIFAR-10, all of it, on a CPU or a GPU: experiments of docs/cifar.md."""
