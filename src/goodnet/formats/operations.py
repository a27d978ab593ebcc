"""Which operations of the tensor library a model file may call: those that classifiers are made of.

The library has some two thousand. Many take what they are told for true: a sparse tensor with an
index beyond its size, a nested one with wrong offsets or a tensor that is set to other memory read
and write where they should not. So this is a list of what is let through; an operation that
PyTorch adds is refused until it stands here.
"""

from __future__ import annotations

_FOR_IMAGES = """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution
linear bilinear matmul mm bmm mv dot addmm addbmm baddbmm addmv outer einsum tensordot inner vdot
batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm
instance_norm layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm
norm linalg_norm linalg_vector_norm linalg_matrix_norm frobenius_norm renorm
_weight_norm _weight_norm_interface cosine_similarity pairwise_distance cdist _cdist_forward
relu relu6 leaky_relu prelu _prelu_kernel rrelu elu selu celu gelu silu mish glu hardtanh hardswish
hardsigmoid hardshrink softshrink softplus log_sigmoid sigmoid tanh threshold softmax _softmax
log_softmax _log_softmax _safe_softmax logsumexp logit
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d
avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d
dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout
scaled_dot_product_attention _scaled_dot_product_attention_math
_scaled_dot_product_flash_attention_for_cpu
pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
native_channel_shuffle im2col col2im unfold
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d
affine_grid_generator grid_sampler grid_sampler_2d embedding one_hot lstm gru rnn_tanh rnn_relu
fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2
fft_rfftn fft_irfftn fft_fftshift fft_ifftshift _fft_c2c _fft_r2c _fft_c2r view_as_complex
view_as_real real imag complex conj resolve_conj
"""

_ARITHMETIC = """
add sub rsub subtract mul multiply div divide true_divide floor_divide remainder fmod pow
float_power neg negative abs absolute sign sgn square sqrt rsqrt reciprocal exp exp2 expm1 log log2
log10 log1p sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erfinv sinc
floor ceil round trunc frac clamp clamp_min clamp_max clip maximum minimum fmax fmin lerp addcmul
addcdiv hypot nan_to_num logaddexp xlogy positive
eq ne lt le gt ge equal greater greater_equal less less_equal not_equal logical_and logical_or
logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor bitwise_left_shift
bitwise_right_shift isnan isinf isfinite isclose where
sum mean prod std var std_mean var_mean amax amin aminmax max min any all argmax argmin cumsum
cumprod median mode nansum nanmean count_nonzero topk sort argsort kthvalue quantile bucketize
searchsorted diff
"""

_SHAPES = """
view view_as reshape reshape_as _reshape_alias _unsafe_view flatten unflatten ravel squeeze
unsqueeze expand expand_as broadcast_to broadcast_tensors permute transpose t numpy_T mT mH adjoint
movedim moveaxis swapaxes swapdims cat concat concatenate stack hstack vstack dstack split
split_with_sizes chunk unbind tensor_split unsafe_split unsafe_chunk narrow select slice index
index_select index_put index_add index_copy index_fill gather scatter scatter_add scatter_reduce
select_scatter slice_scatter masked_fill masked_select masked_scatter take take_along_dim flip
fliplr flipud roll rot90 repeat repeat_interleave tile meshgrid diagonal diag diag_embed tril triu
tril_indices triu_indices as_strided nonzero trace atleast_1d atleast_2d atleast_3d block_diag
zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full
new_empty zero fill copy arange range linspace eye scalar_tensor rand randn randint randperm
rand_like randn_like bernoulli normal
clone contiguous alias detach lift_fresh lift_fresh_copy to _to_copy type_as item
_local_scalar_dense size stride numel dim sym_size sym_numel sym_stride is_floating_point
is_complex is_nonzero is_same_size result_type _shape_as_tensor storage_offset
sym_storage_offset
"""

_OF_SCRIPTS = """
__and__ __or__ __xor__ __not__ __is__ __isnot__ __getitem__ __contains__ __derive_index
__range_length __lshift__ __rshift__ __round_to_zero_floordiv __interpolate __upsample
__upsample_nearest __upsample_bilinear _unwrap_optional _infer_size _list_to_tensor
_tensor_to_list _set_item _get_tracing_state Delete Size
append extend insert pop popitem clear reverse remove count index len list dict keys values items
get setdefault update sorted Int Float Bool Complex IntImplicit FloatImplicit ScalarImplicit
ComplexImplicit floordiv divmod mathremainder fabs modf gcd copysign degrees radians factorial
as_tensor tensor requires_grad_ is_grad_enabled set_grad_enabled is_autocast_enabled
is_autocast_cpu_enabled get_autocast_dtype has_torch_function broadcast_shapes device cpu cuda
get_device is_contiguous warn ord chr hash hex oct bin str format percentFormat join strip lstrip
rstrip startswith endswith lower upper title capitalize splitlines split rsplit partition
rpartition find rfind rindex replace zfill ljust rjust center isnumeric isdigit isdecimal isalpha
isalnum islower isupper isspace
"""

_TENSORS = frozenset([*_FOR_IMAGES.split(), *_ARITHMETIC.split(), *_SHAPES.split()])
_SCRIPTS = _TENSORS | frozenset(_OF_SCRIPTS.split())


def is_allowed(name: str, script: bool = False) -> bool:
    """Whether a model file may call an operation.

    Args:
        name: without its library and overload, as ``"conv2d"``; of one that changes its tensor in
            place the name ends in an underscore.
        script: whether the file is a TorchScript program, which also handles lists and texts.
    """
    known = _SCRIPTS if script else _TENSORS
    return name in known or (name.endswith("_") and name[:-1] in known)
