"""The process that owns the device. Only this folder imports torch."""
