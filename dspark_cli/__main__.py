"""`python -m dspark_cli`"""

from dspark_cli.main import main

main()
