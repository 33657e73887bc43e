namespace BlockServer.Pfcli;

/// <summary>A command that was refused or failed, in one line that says what and what to do.</summary>
public sealed class CliException : Exception
{
    /// <summary>Fails with <paramref name="message"/> and <paramref name="exitCode"/>.</summary>
    public CliException(string message, int exitCode = ExitCode.Failed, int status = 0, Exception? inner = null)
        : base(message, inner)
    {
        Exit = exitCode;
        Status = status;
    }

    /// <summary>What the process exits with.</summary>
    public int Exit { get; }

    /// <summary>The stable word of the refusal, or empty.</summary>
    public string Code { get; init; } = "";

    /// <summary>The HTTP status of the refusal, or 0 when no answer came.</summary>
    public int Status { get; }
}

/// <summary>What pfcli exits with.</summary>
public static class ExitCode
{
    /// <summary>The thing was done.</summary>
    public const int Done = 0;

    /// <summary>It was refused or failed; one line on standard error says what to do.</summary>
    public const int Failed = 1;

    /// <summary>Wrong usage.</summary>
    public const int Usage = 2;
}
