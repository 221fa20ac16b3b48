/* version.h - the version of the program; tools/check_house.py compares meson.build and
 * pyproject.toml with it. */
#ifndef MXD_BASE_VERSION_H
#define MXD_BASE_VERSION_H

#define MXD_VERSION "0.1.0"

#endif
