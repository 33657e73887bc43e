namespace BlockServer.Pfcli; internal static class Program { private static int Main() => 0; }
