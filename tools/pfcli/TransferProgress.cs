using System.Globalization;
using BlockServer.Core;

namespace BlockServer.Pfcli;

/// <summary>How far a transfer is, on standard error: a moving line on a terminal, else one line per tenth.</summary>
internal sealed class TransferProgress(CliHost host, string what, ulong totalBytes, ulong doneBytes, bool isQuiet)
{
    private readonly long _begun = host.Clock.GetTimestamp();
    private long _shown;
    private int _tenth = -1;

    /// <summary>So much of the content is done.</summary>
    public void Show(ulong bytes)
    {
        if (isQuiet) return;
        int tenth = totalBytes == 0 ? 10 : (int)(bytes / (double)totalBytes * 10);
        bool isDue = host.ErrorIsTerminal ? host.Clock.GetElapsedTime(_shown) > TimeSpan.FromMilliseconds(200) : tenth > _tenth;
        if (!isDue) return;
        _tenth = tenth;
        _shown = host.Clock.GetTimestamp();
        double seconds = host.Clock.GetElapsedTime(_begun).TotalSeconds;
        string rate = "";
        if (seconds >= 0.5 && bytes > doneBytes)
        {
            double perSecond = (bytes - doneBytes) / seconds;
            var left = TimeSpan.FromSeconds(Math.Min((totalBytes - bytes) / perSecond, TimeSpan.FromDays(365).TotalSeconds));
            rate = string.Create(CultureInfo.InvariantCulture, $", {SizeText.Format((ulong)perSecond)}/s, {left:d\\.hh\\:mm\\:ss} left");
        }

        string part = (totalBytes == 0 ? 1 : bytes / (double)totalBytes).ToString("P0", CultureInfo.InvariantCulture);
        string text = Printer.Clean($"{what}: {part} of {SizeText.Format(totalBytes)}{rate}");
        if (host.ErrorIsTerminal) host.Error.Write("\r\x1b[K" + text);
        else host.Error.WriteLine(text);
        host.Error.Flush();
    }

    /// <summary>Takes the moving line away.</summary>
    public void End()
    {
        if (!isQuiet && host.ErrorIsTerminal) host.Error.Write("\r\x1b[K");
    }
}
