// Lays decoded pictures into frames, as cv2.warpAffine (OpenCV 5, INTER_LINEAR, black outside) does for a
// matrix that only scales and shifts. Every rounding is OpenCV's: the columns' positions are fused, nothing
// else is.

struct Picture {
  const unsigned char* pixels;  // RGB, interleaved
  long long pitch;              // bytes from row to row
  int height, width;
  float step, first_column, first_row;  // of the frame's pixels in the picture
  int frame;                            // where in the batch the result goes
};

// One thread for each pixel of a frame; blockIdx.z counts pictures.
extern "C" __global__ void warp(const Picture* pictures, unsigned char* frames, int frame_height,
                                int frame_width) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= frame_width || y >= frame_height) {
    return;
  }
  const Picture picture = pictures[blockIdx.z];
  const float column = __fmaf_rn(static_cast<float>(x), picture.step, picture.first_column);
  const float row = __fadd_rn(__fmul_rn(static_cast<float>(y), picture.step), picture.first_row);
  const float left = floorf(column);
  const float top = floorf(row);
  const float across = __fsub_rn(column, left);
  const float down = __fsub_rn(row, top);

  float corners[2][2][3] = {};
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const float source_row = top + static_cast<float>(i);
      const float source_column = left + static_cast<float>(j);
      // Compared as floats, which cannot overflow.
      if (source_row >= 0.0f && source_row < static_cast<float>(picture.height) && source_column >= 0.0f &&
          source_column < static_cast<float>(picture.width)) {
        const unsigned char* pixel = picture.pixels + static_cast<long long>(source_row) * picture.pitch +
                                     static_cast<long long>(source_column) * 3;
        for (int channel = 0; channel < 3; ++channel) {
          corners[i][j][channel] = static_cast<float>(pixel[channel]);
        }
      }
    }
  }
  const long long place = (static_cast<long long>(picture.frame) * frame_height + y) * frame_width + x;
  unsigned char* out = frames + place * 3;
  for (int channel = 0; channel < 3; ++channel) {
    float lines[2];
    for (int i = 0; i < 2; ++i) {
      const float difference = __fsub_rn(corners[i][1][channel], corners[i][0][channel]);
      lines[i] = __fadd_rn(corners[i][0][channel], __fmul_rn(difference, across));
    }
    const float value = __fadd_rn(lines[0], __fmul_rn(__fsub_rn(lines[1], lines[0]), down));
    out[2 - channel] = static_cast<unsigned char>(__float2int_rn(value));
  }
}
