"""Kernels of the reverse-time and transposed scans. A kernel computes on raw tensors: it checks no shapes and records no gradients.

There is one module per backend. Follow one call of :func:`a2c_compiled.functional.generalized_advantage_estimate`:

1. ``functional/gae.py``: ``generalized_advantage_estimate`` first tries ``direct`` (``ops/eager_fast_path.py``), which calls the C++
   function ``call`` (``kernels/cpu/module.cpp``). ``call`` computes the result for small plain CPU tensors that need no gradient, and
   returns None for all others; then the next steps run.
2. ``functional/steps.py``: ``prepare_steps`` and ``moved_operand`` check the arguments. Then ``_fused_gae`` runs.
3. ``ops/fused.py``: ``fused_scan`` built ``_fused_gae`` from the forms ``GAE`` and ``GAE_BACKWARD`` (recurrences with their inputs and
   outputs, ``kernels/scan_forms.py``) and the definition ``_gae``. ``_fused_gae`` applies an ``autograd.Function`` if a gradient is
   needed. Under ``torch.export`` it runs ``_gae``.
4. ``ops/registration.py``: ``register`` made the operator ``torch.ops.a2c_compiled.gae``. The device selects ``on_cpu``, ``on_gpu`` or
   ``in_torch`` (any other device: ``_gae`` again, whose scan is ``kernels/torch_scan.py``).
5. CPU: ``kernels/cpu_scan.py`` ``run`` -> ``kernels/cpu/module.cpp`` ``run`` -> ``kernels/cpu/scan.h`` ``scan<Gae, float>``, which calls
   ``Gae::prologue``, the recurrence and ``Gae::epilogue`` (``kernels/cpu/forms.h``) at every step.
6. GPU: ``kernels/triton_scan.py`` ``run`` -> ``prepare`` -> ``_plan`` (tile sizes: ``kernels/triton/tuning.py``). ``run`` then launches
   ``scan_kernel`` (``kernels/triton/kernel.py``), which calls ``_gae_source``, ``_trace_decay`` and ``_gae_outputs``
   (``kernels/triton/forms.py``).
7. Back: ``Fused.backward`` (``ops/fused.py``) calls the operator ``gae_backward``, which takes steps 4 to 6 with ``GAE_BACKWARD``. For
   gradients of ``gamma`` and ``lmbda``, and for gradients of gradients, autograd differentiates ``_gae`` instead.
"""
