#if defined(__x86_64__)
#include "limits/row_visits_impl.h"

namespace te {

const RowVisits& row_visits_avx2() { return kVisits; }

}  // namespace te
#endif
