// An empty Python module: it lets setuptools build, place and ship the shared library that the kernels live in.
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
