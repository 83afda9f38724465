/*
 * cuda_states.cu — recurrent states on the device: their layout there, creation, copies, and the way to and from the
 * common layout of the host.
 */
#include "cuda_internal.cuh"

#include <new>

void cuda_states_open(cuda_backend *be)
{
    const xl_backend_options *o = &be->opt;
    be->c_block = be->layout.c_bytes;
    be->n_copy = (size_t)o->num_blocks * o->num_heads * o->head_qk;
    be->m_copy = (size_t)o->num_blocks * o->num_heads;
    be->store_bytes = be->c_block * o->num_blocks + 2 * (be->n_copy + be->m_copy) * sizeof(float);
}

void cuda_states_close(cuda_backend *be)
{
    while (be->free_stores != nullptr) {
        xl_store *s = be->free_stores;
        be->free_stores = s->next;
        cudaFree(s->data);
        delete s;
    }
}

void cuda_store_free(xl_backend *base, xl_store *s)
{
    cuda_backend *be = cuda_of(base);
    if (s == nullptr) return;
    s->next = be->free_stores;
    be->free_stores = s;
}

int cuda_store_zero(xl_backend *base, xl_store *s, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    s->parity = 0;
    cudaError_t code = cudaMemsetAsync(s->data, 0, be->store_bytes, be->stream);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "clearing a state");
}

int cuda_store_new(xl_backend *base, xl_store **out, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    *out = nullptr;
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    xl_store *s = be->free_stores;
    if (s != nullptr) {
        be->free_stores = s->next;
    } else {
        s = new (std::nothrow) xl_store();
        if (s == nullptr) return xl_fail(err, XLSTM_E_MEMORY, "cuda: out of memory");
        result = cuda_alloc(be, (void **)&s->data, be->store_bytes, "a session's state", err);
        if (result != XLSTM_OK) {
            delete s;
            return result;
        }
    }
    result = cuda_store_zero(base, s, err);
    if (result != XLSTM_OK) {
        cuda_store_free(base, s);
        return result;
    }
    *out = s;
    return XLSTM_OK;
}

int cuda_store_copy(xl_backend *base, xl_store *to, const xl_store *from, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    cudaError_t code = cudaMemcpyAsync(to->data, from->data, be->store_bytes, cudaMemcpyDeviceToDevice, be->stream);
    to->parity = from->parity;
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "copying a state");
}

namespace
{

/* n and m between the device's float32 and the host layout, through one host copy of both. */
cudaError_t store_small(cuda_backend *be, const xl_store *s, std::vector<float> &small, bool read)
{
    small.resize(be->n_copy + be->m_copy);
    cudaMemcpyKind kind = read ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
    float *n = cuda_n_of(be, s, s->parity), *m = cuda_m_of(be, s, s->parity);
    cudaError_t code =
        cudaMemcpyAsync(read ? small.data() : n, read ? n : small.data(), be->n_copy * sizeof(float), kind, be->stream);
    if (code == cudaSuccess) {
        code = cudaMemcpyAsync(read ? small.data() + be->n_copy : m, read ? m : small.data() + be->n_copy,
                               be->m_copy * sizeof(float), kind, be->stream);
    }
    if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream);
    return code;
}

} // namespace

int cuda_store_read(xl_backend *base, const xl_store *s, void *host, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    const xl_state_layout *l = &be->layout;
    const xl_backend_options *o = &be->opt;
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    uint8_t *bytes = (uint8_t *)host;
    cudaError_t code = cudaMemcpy2DAsync(bytes, l->block_bytes, s->data, be->c_block, l->c_bytes, o->num_blocks,
                                         cudaMemcpyDeviceToHost, be->stream);
    std::vector<float> small;
    if (code == cudaSuccess) code = store_small(be, s, small, true);
    if (code != cudaSuccess) return cuda_fail(err, code, "reading a state");
    for (uint32_t b = 0; b < o->num_blocks; b++) {
        memset(bytes + b * l->block_bytes + l->c_bytes, 0, l->n_bytes + l->m_bytes);
        for (uint32_t h = 0; h < o->num_heads; h++) {
            const float *n = small.data() + ((size_t)b * o->num_heads + h) * o->head_qk;
            uint8_t *to = bytes + xl_state_n_offset(l, b, h);
            for (uint32_t i = 0; i < o->head_qk; i++) {
                uint16_t narrow = xl_f32_to_bf16(n[i]);
                if (l->n_dtype == XLSTM_BF16) memcpy(to + 2 * i, &narrow, 2);
                else memcpy(to + 4 * i, &n[i], 4);
            }
            memcpy(bytes + xl_state_m_offset(l, b, h), small.data() + be->n_copy + (size_t)b * o->num_heads + h,
                   sizeof(float));
        }
    }
    return XLSTM_OK;
}

int cuda_store_write(xl_backend *base, xl_store *s, const void *host, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    const xl_state_layout *l = &be->layout;
    const xl_backend_options *o = &be->opt;
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    const uint8_t *bytes = (const uint8_t *)host;
    cudaError_t code = cudaMemcpy2DAsync(s->data, be->c_block, bytes, l->block_bytes, l->c_bytes, o->num_blocks,
                                         cudaMemcpyHostToDevice, be->stream);
    std::vector<float> small(be->n_copy + be->m_copy);
    for (uint32_t b = 0; b < o->num_blocks; b++) {
        for (uint32_t h = 0; h < o->num_heads; h++) {
            float *n = small.data() + ((size_t)b * o->num_heads + h) * o->head_qk;
            const uint8_t *from = bytes + xl_state_n_offset(l, b, h);
            for (uint32_t i = 0; i < o->head_qk; i++) {
                uint16_t narrow = 0;
                memcpy(&narrow, from + 2 * i, 2);
                if (l->n_dtype == XLSTM_BF16) n[i] = xl_bf16_to_f32(narrow);
                else memcpy(&n[i], from + 4 * i, 4);
            }
            memcpy(small.data() + be->n_copy + (size_t)b * o->num_heads + h, bytes + xl_state_m_offset(l, b, h),
                   sizeof(float));
        }
    }
    s->parity = 0;
    if (code == cudaSuccess) code = store_small(be, s, small, false);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "writing a state");
}
