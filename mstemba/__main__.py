from mstemba.cli import main

main()
