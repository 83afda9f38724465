/*
 * cuda_states.cu — recurrent states on the device: their layout there, creation, copies, and the way to and from the
 * common layout of the host.
 */
#include "cuda_internal.cuh"

#include <cstring>
#include <new>

void cuda_states_open(cuda_backend *be)
{
    const xl_backend_options *o = &be->opt;
    be->c_block = be->layout.c_bytes;
    if (o->state == XLSTM_I8) {
        size_t rows = (size_t)o->num_heads * o->head_qk;
        be->c_scales = xl_round_up(rows * o->head_v, XL_ALIGN);
        be->c_block = be->c_scales + xl_round_up(rows * sizeof(float), XL_ALIGN);
    }
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

/* ---- host layout ------------------------------------------------------------------------------------------------ */

namespace
{

/* n bytes of a state, `offset` behind its beginning, to or from host memory. Enqueued. */
cudaError_t transfer(cuda_backend *be, const xl_store *s, size_t offset, void *bytes, size_t n, bool read)
{
    uint8_t *at = s->data + offset;
    return read ? cudaMemcpyAsync(bytes, at, n, cudaMemcpyDeviceToHost, be->stream)
                : cudaMemcpyAsync(at, bytes, n, cudaMemcpyHostToDevice, be->stream);
}

/* The C of one block. `room` holds a block as it lies on the device; for int8, whose scales the host has behind each row. */
cudaError_t transfer_c(cuda_backend *be, const xl_store *s, uint32_t block, uint8_t *host, uint8_t *room, bool read)
{
    const xl_state_layout *l = &be->layout;
    if (be->opt.state != XLSTM_I8) return transfer(be, s, block * be->c_block, host, l->c_bytes, read);
    size_t dv = l->head_v, rows = (size_t)l->num_heads * l->head_qk;
    cudaError_t code = cudaSuccess;
    if (read) {
        code = transfer(be, s, block * be->c_block, room, be->c_block, true);
        if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream);
        memset(host + rows * l->c_row_bytes, 0, l->c_bytes - rows * l->c_row_bytes);
    } else {
        memset(room, 0, be->c_block);
    }
    for (size_t r = 0; r < rows && code == cudaSuccess; r++) {
        uint8_t *row = host + r * l->c_row_bytes, *levels = room + r * dv,
                *scale = room + be->c_scales + r * sizeof(float);
        memcpy(read ? row : levels, read ? levels : row, dv);
        memcpy(read ? row + dv : scale, read ? scale : row + dv, sizeof(float));
    }
    if (!read) {
        code = transfer(be, s, block * be->c_block, room, be->c_block, false);
        if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream); /* the next block needs the room */
    }
    return code;
}

/* The current copies of n and m, as float32: n [n_copy], then m [m_copy]. */
cudaError_t transfer_small(cuda_backend *be, const xl_store *s, float *small, bool read)
{
    size_t n = (const uint8_t *)cuda_n_of(be, s, s->parity) - s->data,
           m = (const uint8_t *)cuda_m_of(be, s, s->parity) - s->data;
    cudaError_t code = transfer(be, s, n, small, be->n_copy * sizeof(float), read);
    if (code == cudaSuccess) code = transfer(be, s, m, small + be->n_copy, be->m_copy * sizeof(float), read);
    if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream);
    return code;
}

/* n and m of the host layout from, or to, float32. */
void convert_small(const cuda_backend *be, uint8_t *host, float *small, bool read)
{
    const xl_state_layout *l = &be->layout;
    for (uint32_t b = 0; b < l->num_blocks; b++) {
        if (read) memset(host + b * l->block_bytes + l->c_bytes, 0, l->n_bytes + l->m_bytes);
        for (uint32_t h = 0; h < l->num_heads; h++) {
            size_t head = (size_t)b * l->num_heads + h;
            float *n = small + head * l->head_qk, *m = small + be->n_copy + head;
            uint8_t *n_host = host + xl_state_n_offset(l, b, h), *m_host = host + xl_state_m_offset(l, b, h);
            memcpy(read ? (void *)m_host : m, read ? (void *)m : m_host, sizeof(float));
            if (l->n_dtype == XLSTM_F32) {
                memcpy(read ? (void *)n_host : n, read ? (void *)n : n_host, l->head_qk * sizeof(float));
                continue;
            }
            for (uint32_t i = 0; i < l->head_qk; i++) {
                uint16_t narrow = read ? xl_f32_to_bf16(n[i]) : 0;
                memcpy(read ? (void *)(n_host + 2 * i) : &narrow, read ? (void *)&narrow : n_host + 2 * i, 2);
                if (!read) n[i] = xl_bf16_to_f32(narrow);
            }
        }
    }
}

int transfer_state(cuda_backend *be, const xl_store *s, uint8_t *host, bool read, xlstm_error *err)
{
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    size_t small_bytes = xl_round_up((be->n_copy + be->m_copy) * sizeof(float), XL_ALIGN);
    float *small = (float *)xl_alloc(small_bytes + (be->opt.state == XLSTM_I8 ? be->c_block : 0), err);
    if (small == nullptr) return XLSTM_E_MEMORY;
    cudaError_t code = cudaSuccess;
    for (uint32_t b = 0; b < be->opt.num_blocks && code == cudaSuccess; b++)
        code = transfer_c(be, s, b, host + b * be->layout.block_bytes, (uint8_t *)small + small_bytes, read);
    if (!read) convert_small(be, host, small, false);
    if (code == cudaSuccess) code = transfer_small(be, s, small, read);
    if (read && code == cudaSuccess) convert_small(be, host, small, true);
    xl_release(small);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, read ? "reading a state" : "writing a state");
}

} // namespace

int cuda_store_read(xl_backend *base, const xl_store *s, void *host, xlstm_error *err)
{
    return transfer_state(cuda_of(base), s, (uint8_t *)host, true, err);
}

int cuda_store_write(xl_backend *base, xl_store *s, const void *host, xlstm_error *err)
{
    s->parity = 0;
    return transfer_state(cuda_of(base), s, (uint8_t *)host, false, err); /* only read from */
}
