namespace BlockServer.Blockd; internal static class Program { private static int Main() => 0; }
