"""Where other libraries are told of manycore: one module a library, which imports it.

joblib      a parallel backend, for scikit-learn too
"""
