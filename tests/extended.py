"""The tests that ``make test`` leaves out, and what it runs instead.

A graph that is compiled or exported costs seconds, so ``make test`` checks some behaviours on fewer cases than there are.
``make test-extended`` runs the tests that match a pattern of ``EXTENDED``; ``.ci/run`` runs both. A pattern is a file name, ``::`` and a
test with its parameters; ``*`` stands for any text. The keys say what ``make test`` runs of the same kind.
"""

import re
from functools import cache

EXTENDED = {
    "benchmarks: the commands run on fewer subjects": (
        "test_benchmarks.py::test_every_subject_runs_and_every_mode_gives_the_right_result",
        "test_gpu_kit.py::test_every_step_runs_from_the_folder_alone_and_its_results_are_packed",
    ),
    "distributions: the five that have tests of their own are compiled and exported": (
        "test_distributions_contract.py::test_compiled_whole_equals_eager",
        "test_distributions_contract.py::test_traced_backward_pass_equals_eager[TruncatedNormal]",
        "test_distributions_contract.py::test_traced_backward_pass_equals_eager[MaskedOneHotCategorical]",
        "test_distributions_contract.py::test_traced_backward_pass_equals_eager[OneHotOrdinal]",
        "test_distributions_export.py::test_a_composite_training_step_agrees_with_eager",
        "test_distributions_export.py::*[TruncatedNormal]",
        "test_distributions_export.py::*[Beta]",
        "test_distributions_export.py::*[MaskedOneHotCategorical]",
        "test_distributions_export.py::*[OneHotOrdinal]",
        "test_distributions_export.py::*[Ordinal]",
        "test_distributions_export.py::*[Bernoulli]",
        "test_distributions_wrong_actions.py::test_a_compiled_graph_raises_the_same_words[OneHot*]",
        "test_distributions_wrong_actions.py::test_a_compiled_graph_raises_the_same_words[Masked*]",
        "test_distributions_wrong_actions.py::test_an_exported_graph_returns_nan[OneHot*]",
    ),
    "estimators: GAE, TD(lambda) and V-trace are traced": (
        "test_estimators.py::test_traced_estimator_equals_the_oracle_in_other_shapes_and_with_other_coefficients[NStep*]",
        "test_estimators.py::test_traced_estimator_equals_the_oracle_in_other_shapes_and_with_other_coefficients[TD0*]",
        "test_estimators.py::test_traced_estimator_equals_the_oracle_in_other_shapes_and_with_other_coefficients[TD1*]",
        "test_estimators.py::test_traced_estimator_equals_the_oracle_in_other_shapes_and_with_other_coefficients[UPGO*]",
    ),
    "export: some of the estimators and losses are exported to ONNX, TorchScript and torch.export": (
        "test_export.py::*[TD0Estimator-*",
        "test_export.py::*[UPGO-*",
        "test_export.py::*[TD1Estimator-*",
        "test_export.py::*[MaskedCategorical-TD1-none*",
        "test_export.py::*[Categorical-GAE-NT1-shifted-sum*",
        "test_export.py::*[Categorical-advantage_given*",
        "test_export.py::*[Normal-TDLambda-float64-in_chunks*",
        "test_export.py::test_exported_losses_and_their_gradients_equal_eager_on_extreme_logits[OneHotCategorical]",
        "test_export_aot.py::*[TD0Estimator-*",
        "test_export_aot.py::*[TD1Estimator-*",
        "test_export_aot.py::*[UPGO-*",
        "test_shared_trunk.py::test_a_scripted_loss_equals_eager_with_the_same_names[shifted]",
        "test_shared_trunk.py::test_an_exported_graph_holds_the_trunk_once_for_each_observation[loss*",
        "test_export_aot.py::*[MaskedCategorical-TD1-none*",
        "test_export_aot.py::*[OneHotCategorical-TD0-NT1-masked*",
    ),
    "export: packages of AOTInductor hold an estimator and a policy": (
        "test_export_aot.py::*[update*",
        "test_export_aot.py::test_verification_of_an_update_starts_from_the_exported_state_and_another_one",
        "test_export_aot.py::test_consecutive_updates_of_a_file_equal_those_of_eager*",
    ),
    "export: three of the training steps are exported, and five others have their gradients written out": (
        "test_export_train_step.py::*[Normal-gru-lstm-sgd]",
        "test_export_train_step.py::*[MaskedCategorical-layer_norm-shared-sgd-momentum-trained]",
        "test_export_train_step.py::*[Categorical-conv_relu-shared-sgd]",
        "test_export_train_step.py::*[OneHotCategorical-conv-linear-sgd-nesterov]",
        "test_export_train_step.py::*[TanhNormal-linear-linear-rmsprop-all]",
        "test_export_train_step.py::*[Normal-layer_norm-conv-adamw-all]",
        "test_export_train_step.py::*[TanhNormal-lstm-layer_norm-rmsprop-momentum]",
        "test_export_train_step.py::*[TanhNormal-conv-mlp-sgd-momentum]",
        "test_export_train_step_layers.py::*[padding_modes]",
        "test_export_train_step_layers.py::*[pooling_to_one]",
        "test_export_train_step_layers.py::*[adaptive_max_pooling]",
        "test_export_train_step_layers.py::*[resizing_nearest]",
        "test_export_train_step_layers.py::*[one_dimension]",
        "test_export_train_step_layers.py::*[three_dimensions]",
        "test_export_train_step_layers.py::*[activations_and_norms]",
        "test_export_train_step_layers.py::test_layers_learn_in_onnxruntime_as_in_eager_mode[depthwise]",
        "test_export_train_step_layers.py::test_layers_learn_in_onnxruntime_as_in_eager_mode[row]",
        "test_export_train_step_layers.py::test_layers_learn_in_onnxruntime_as_in_eager_mode[attention]",
        "test_export_train_step.py::test_adam_with_a_small_epsilon_is_as_exact_as_torch_is",
        "test_export_train_step.py::test_newer_opsets_update_the_same[20]",
        "test_runtime.py::*[choices-cpu]",
        "test_recurrent_train_step.py::*[mixture]",
        "test_recurrent_train_step.py::*[RNNCell]",
        "test_integration_stable_baselines3.py::test_the_training_step_of_a_model_over_dicts_exports_and_trains_as_eager_does",
        "test_torchscript_cpp.py::test_a_policy_acts_in_cpp",
        "test_export_threads.py::test_two_threads_export_while_another_trains",
        "test_action_space_files.py::test_exported_policies_return_actions_in_the_space[MultiBinary*",
        "test_action_space_files.py::test_exported_policies_return_actions_in_the_space[*np.float64*",
        "test_action_space_files.py::test_exported_policies_return_actions_in_the_space[*np.float16)-.pt*",
        "test_loss_export.py::test_a_training_step_with_another_objective_shifted_values_diagnostics_and_fixed_statistics_is_exported",
        "test_integration_stable_baselines3.py::test_the_training_step_of_a_model_exports",
    ),
    "functions: inductor compiles GAE, V-trace and Retrace; others are traced": (
        "test_functional_compiled.py::test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes[n_step*",
        "test_functional_compiled.py::test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes[upgo*",
        "test_functional_compiled.py::test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes[td*",
        "test_functional_compiled.py::test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes[reward2go*",
    ),
    "functions: each function is traced with some of the shapes and coefficients": (
        "test_functional.py::test_a_terminated_step_ends_the_trace_whether_it_is_done_or_not[*_return_estimate-traced]",
        "test_functional_compiled.py::test_traced_gives_empty_results_and_gradients_for_empty_data[n_step*",
        "test_functional_compiled.py::test_traced_gives_empty_results_and_gradients_for_empty_data[upgo*",
        "test_functional_compiled.py::test_traced_gives_empty_results_and_gradients_for_empty_data[retrace*",
        "test_functional_compiled.py::test_traced_with_dimensions_before_and_after_time_equals_the_oracle[n_step*",
        "test_functional_compiled.py::test_traced_with_dimensions_before_and_after_time_equals_the_oracle[td_lambda*",
        "test_functional_compiled.py::test_traced_with_a_single_step_equals_the_oracle[retrace*",
        "test_functional_compiled.py::test_traced_with_a_single_step_equals_the_oracle[n_step*",
        "test_functional_compiled.py::test_traced_with_a_single_step_equals_the_oracle[td*",
        "test_functional_compiled.py::test_traced_with_coefficients_per_step_and_without_terminated_equals_the_oracle[vtrace*",
        "test_functional_compiled.py::test_traced_with_coefficients_per_step_and_without_terminated_equals_the_oracle[upgo*",
        "test_functional_compiled.py::test_func_grad_compiles_whole_and_equals_the_oracle[retrace*",
        "test_functional_compiled.py::test_compiled_gradients_equal_eager_ones_when_the_number_of_steps_changes[*-TN-*",
        "test_functional_compiled.py::test_compiled_gradients_equal_eager_ones_when_the_number_of_steps_changes[*-NT--1-*",
    ),
    "kernels: sm_90 is compiled for ahead of time, and each form is interpreted with some of the shapes and strides": (
        "test_triton_ahead_of_time.py::test_compiles_without_spills[sm_80]",
        "test_triton_ahead_of_time.py::test_compiles_without_spills[sm_100]",
        "test_triton_ahead_of_time.py::test_compiles_without_spills[gfx942]",
        "test_masked_forms.py::test_triton_equals_the_form_without_a_mask[*-1]",
        "test_masked_forms.py::test_triton_equals_the_form_without_a_mask[*(9, 4)-3]",
        "test_not_finite.py::test_triton_agrees_with_the_loop[Triton, tiles*",
        "test_not_finite.py::test_a_product_that_overflows_changes_no_zero[Triton, tiles*",
        "test_triton_interpreter.py::test_equals_the_oracle_in_every_shape[*_backward-*",
        "test_triton_interpreter.py::test_equals_the_oracle_with_every_kind_of_strides[*_backward-*",
        "test_triton_interpreter.py::test_equals_the_oracle_with_every_kind_of_strides[td_lambda-*",
        "test_triton_interpreter.py::test_nan_does_not_pass_a_terminated_step[eligibility_trace*",
        "test_triton_interpreter.py::test_equals_the_oracle_in_every_dtype[eligibility_trace*",
    ),
    "losses: inductor compiles one graph for all shapes; others are traced": (
        "test_loss_modes.py::test_compiled_vtrace_with_separate_losses_over_a_shared_trunk_equals_eager",
        "test_loss_modes.py::test_traced_equals_eager_and_serves_another_shape[td1_sampled_entropy]",
        "test_loss_modes.py::test_traced_gives_empty_losses_for_no_steps*",
        "test_loss_advantage.py::*[RunningNorm]",
        "test_loss_advantage.py::test_a_training_step_reads_steps_groups_and_mask_and_moves_the_statistics_in_eager_and_compiled_mode*",
        "test_loss_wrong_actions.py::test_masked_actions_are_never_read_in_a_compiled_graph[*One*",
        "test_loss_critic.py::test_scripted_and_traced_equal_eager_and_serve_another_shape[shifted]",
    ),
    "networks: recurrent losses run in eager mode and in exported graphs": (
        "test_recurrent.py::test_compiled_training_step_equals_eager",
        "test_recurrent.py::test_min_gru_compiles_once_for_any_number_of_steps",
    ),
    "rollouts: CartPole is compiled": (
        "test_device_rollout.py::*[cartpole_cut_sooner-compiled]",
        "test_device_rollout.py::*[pendulum_normal-compiled]",
        "test_device_rollout.py::*[pendulum_beta-compiled]",
        "test_action_spaces.py::*[compiled]",
        "test_device_rollout.py::test_without_the_scan_operator_the_compiled_steps_are_unrolled_and_give_the_same_rollout",
    ),
    "project: what users copy from the README, and files of earlier versions": (
        "test_readme.py::test_the_examples_run_in_order",
        "test_earlier_files.py::test_an_export_writes_the_earlier_file_names",
        "test_package.py::test_installed_modules_import_in_an_empty_folder*",
    ),
    "training: runs are killed, resumed, exported and distributed in fewer ways": (
        "test_checkpoint.py::test_a_run_that_is_killed_twice_ends_with_the_tensors_of_an_uninterrupted_run",
        "test_cli.py::test_programs_of_torch_export_are_exported_and_verified",
        "test_cli.py::test_each_command_needs_only_its_own_extras",
        "test_cli.py::test_continuous_actions_are_exported_and_verified",
        "test_distributed_training.py::test_machines_that_count_restarts_differently_train_together_again",
        "test_distributed_training.py::test_torchrun_restarts_dead_processes_once_from_the_last_checkpoint_*",
    ),
    "update: inductor compiles one training step; others are traced": (
        "test_train_step.py::test_traced_optimizers_equal_eager[rmsprop-all]",
        "test_train_step.py::test_a_copy_trains_itself_and_not_the_original[pickle-*",
        "test_train_step_features.py::test_two_processes_with_half_of_the_environments_equal_one_with_all",
        "test_train_step_features.py::test_traced_minibatches_of_environments_first_equal_eager",
        "test_compilation.py::test_a_step_compiles_without_the_pass",
        "test_compilation.py::test_products_of_other_dtypes_and_small_ones_are_not_rewritten",
    ),
}


@cache
def _pattern() -> "re.Pattern[str]":
    patterns = (pattern for group in EXTENDED.values() for pattern in group)
    return re.compile("|".join(".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns))


def is_extended(node_id: str) -> bool:
    """Returns whether ``make test`` leaves out the test. ``node_id``: without what pytest-xdist appends."""
    return _pattern().fullmatch(node_id.rpartition("/")[2]) is not None
