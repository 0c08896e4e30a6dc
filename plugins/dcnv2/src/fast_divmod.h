// Division by a number that only the host knows, as a multiplication.
#pragma once

#include "numeric.h"

namespace dcnv2 {

struct FastDivmod {
  int32_t divisor;
  uint32_t multiplier;

  static FastDivmod of(int32_t divisor) {
    return {divisor, static_cast<uint32_t>(((UINT64_C(1) << 31) + static_cast<uint32_t>(divisor) - 1) /
                                           static_cast<uint32_t>(divisor))};
  }
  // Whether every dividend up to `dividend` is divided exactly.
  static constexpr bool exact(int64_t dividend, int64_t divisor) {
    return dividend * divisor <= INT64_C(1) << 31;
  }
  DCNV2_FN int32_t div(int32_t dividend) const {
    return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(dividend)) * multiplier >> 31);
  }
  // Returns the remainder; `dividend` becomes the quotient.
  DCNV2_FN int32_t divmod(int32_t& dividend) const {
    const int32_t quotient = div(dividend);
    const int32_t remainder = dividend - quotient * divisor;
    dividend = quotient;
    return remainder;
  }
};

}  // namespace dcnv2
