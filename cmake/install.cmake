# What `make install` puts where: program, libraries, header, pkg-config file, CMake package, man page, completions,
# the model that ships with the project.
include(CMakePackageConfigHelpers)

install(TARGETS xlstm_shared xlstm_static EXPORT xlstmTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET xlstm)
  install(TARGETS xlstm RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(FILES include/xlstm.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/xlstm)
install(EXPORT xlstmTargets NAMESPACE xlstm:: DESTINATION ${PACKAGE_DIR})
configure_package_config_file(cmake/xlstmConfig.cmake.in ${PROJECT_BINARY_DIR}/xlstmConfig.cmake
                              INSTALL_DESTINATION ${PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/xlstmConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/xlstmConfig.cmake ${PROJECT_BINARY_DIR}/xlstmConfigVersion.cmake
        DESTINATION ${PACKAGE_DIR})
configure_file(cmake/xlstm.pc.in ${PROJECT_BINARY_DIR}/xlstm.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/xlstm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET xlstm)
  install(FILES docs/xlstm.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES completions/xlstm.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME xlstm)
  install(FILES completions/xlstm.zsh DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions RENAME _xlstm)
  install(FILES completions/xlstm.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
install(DIRECTORY models DESTINATION ${CMAKE_INSTALL_DATADIR}/xlstm)
install(FILES LICENSE README.md THIRD_PARTY.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
